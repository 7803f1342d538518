#!/bin/bash
# Takes away what tests left behind that were killed: mounts, loop devices,
# network namespaces and folders, all of them named hf-test-*. What belongs to a
# process that still runs stays, so it is safe beside other runs.
set -uo pipefail
export PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"
((EUID == 0)) || exit 0

# Folders that no process has open, and that no mount of a live server is in.
busy() { [[ -n $(find "$1" -maxdepth 0 -mmin -60) ]] || fuser -s -m "$1" 2>/dev/null || fuser -s "$1" 2>/dev/null; }

# FUSE mounts whose server is gone answer nothing but an error.
while read -r _ target type _; do
	if [[ $type == fuse* && $target == */hf-test-* ]] && ! timeout 5 stat -f "$target" >/dev/null 2>&1; then
		umount -l "$target" && echo "clean: unmounted $target"
	fi
done </proc/mounts

# Loop devices over files that are not there any more.
while read -r device file; do
	[[ $file == */hf-test-* ]] || continue
	[[ $file == *"(deleted)" || ! -e $file ]] || continue
	while read -r target; do
		umount -l "$target" && echo "clean: unmounted $target"
	done < <(findmnt -rn -S "$device" -o TARGET)
	losetup -d "$device" && echo "clean: removed $device of $file"
done < <(losetup -l -n -O NAME,BACK-FILE 2>/dev/null)

# Namespaces without a process.
while read -r name _; do
	if [[ $name == hf-test-* && -z $(ip netns pids "$name" 2>/dev/null) ]] &&
		[[ -n $(find "/run/netns/$name" -maxdepth 0 -mmin +60 2>/dev/null) ]]; then
		ip netns del "$name" && echo "clean: removed the namespace $name"
	fi
done < <(ip netns list 2>/dev/null)

# Old folders, unless something in them is mounted or open.
for dir in "${TMPDIR:-/tmp}"/hf-test-* /var/tmp/hf-test-*; do
	[[ -d $dir ]] || continue
	grep -q " $dir[/ ]" /proc/mounts && continue
	busy "$dir" && continue
	losetup -l -n -O BACK-FILE 2>/dev/null | grep -q "^$dir/" && continue
	# What volumes were mounted on refuses to go while it has the immutable attribute.
	find "$dir" -xdev -empty \( -type d -o -type f \) -exec chattr -f -i {} +
	rm -rf --one-file-system "$dir" && echo "clean: removed $dir"
done
exit 0
