#!/bin/bash
# Installs what a target needs and the machine lacks, from Debian's packages.
#   scripts/prerequisites.sh [test|demo|chaos|bench|race|generate|vm]...
# Does nothing, at once, when everything is there. Needs root to install.
set -euo pipefail
export PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin" # root's PATH without a login shell lacks them
export DEBIAN_FRONTEND=noninteractive

die() {
	echo "prerequisites: $*" >&2
	exit 1
}

# Every line: what for, a program (or file pattern) that shows that it is there, the package.
table='
test      mkfs.xfs     xfsprogs
test      xfs_io       xfsprogs
test      mkfs.ext4    e2fsprogs
test      resize2fs    e2fsprogs
test      losetup      util-linux
test      blkid        util-linux
test      mount        mount
test      ip           iproute2
test      modprobe     kmod
test      fuser        psmisc
test      fio          fio
test      systemd-analyze systemd
test      nft          nftables
test      tc           iproute2
demo      mkfs.xfs     xfsprogs
demo      losetup      util-linux
demo      mount        mount
demo      ip           iproute2
chaos     nft          nftables
chaos     tc           iproute2
chaos     xfs_repair   xfsprogs
chaos     e2fsck       e2fsprogs
chaos     psql         postgresql
chaos     /usr/lib/postgresql/*/bin/postgres postgresql
demo      modprobe     kmod
demo      fuser        psmisc
demo      runuser      util-linux
demo      psql         postgresql
demo      /usr/lib/postgresql/*/bin/postgres postgresql
bench     fio          fio
bench     qemu-storage-daemon qemu-system-common
race      gcc          gcc
race      /usr/include/stdlib.h libc6-dev
vm        qemu-system-x86_64 qemu-system-x86
vm        busybox      busybox-static
vm        depmod       kmod
vm        xz           xz-utils
vm        blkdiscard   util-linux
generate  protoc       protobuf-compiler
generate  /usr/include/google/protobuf/timestamp.proto libprotobuf-dev
'

there() {
	case $1 in
	/*) compgen -G "$1" >/dev/null ;;
	*) command -v "$1" >/dev/null ;;
	esac
}

missing=()
for group in "${@:-test}"; do
	grep -q "^$group " <<<"$table" || die "there is no group $group"
	while read -r of shows package; do
		if [[ $of == "$group" ]] && ! there "$shows" && [[ " ${missing[*]} " != *" $package "* ]]; then
			missing+=("$package")
		fi
	done <<<"$table"
done

install() {
	apt-get install -y --no-install-recommends -o Dpkg::Options::=--force-confold -o DPkg::Lock::Timeout=120 "$@" </dev/null
}

if ((${#missing[@]})); then
	((EUID == 0)) || die "missing: ${missing[*]}. Run this as root, or: sudo apt-get install ${missing[*]}"
	command -v apt-get >/dev/null || die "missing: ${missing[*]}. This is no Debian; install what holds them by hand"
	# The lists may be absent (a container image) or too old; both show here.
	if ! apt-get install -y --no-install-recommends --dry-run "${missing[@]}" >/dev/null 2>&1; then
		apt-get update -q </dev/null
	fi
	if [[ " ${missing[*]} " == *" postgresql "* ]]; then
		# Without this the package makes and starts a database server of its own.
		install postgresql-common
		sed -i 's/^#\?create_main_cluster.*/create_main_cluster = false/' /etc/postgresql-common/createcluster.conf
	fi
	install "${missing[@]}" || { apt-get update -q </dev/null && install "${missing[@]}"; }
fi

command -v go >/dev/null || die "Go is missing: install Go 1.26 or later from https://go.dev/dl/"

for device in loop-control:loop fuse:fuse; do
	if [[ " ${*:-test} " =~ \ (test|demo|chaos|bench|race)\  && ! -e /dev/${device%:*} ]]; then
		modprobe "${device#*:}" 2>/dev/null || true
		[[ -e /dev/${device%:*} ]] || die "/dev/${device%:*} is not there: load the kernel module ${device#*:}, or give it to the container"
	fi
done
