#!/bin/bash
# Fetches Debian's kernels for the virtual machines of `make test-vm` into
# build/vm/SUITE, one per suite named below, without installing anything: the
# machine's own kernel, boot loader and package lists stay as they are.
# Does nothing, at once, when they are there; FRESH=1 looks for newer ones.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"

# 6.1: nbd, no ublk. 6.12: both, ublk cannot grow. The newest: ublk can.
suites=(bookworm bookworm-backports trixie-backports)
vm=$PWD/build/vm
keyring=/usr/share/keyrings/debian-archive-keyring.gpg

die() {
	echo "vm-kernels: $*" >&2
	exit 1
}

complete() { [[ -e $vm/$1/complete ]]; }

missing=()
for suite in "${suites[@]}"; do
	[[ -z ${FRESH:-} ]] && complete "$suite" || missing+=("$suite")
done
((${#missing[@]})) || exit 0

# The mirror that this machine uses already.
mirror=$(apt-get indextargets --format '$(ORIGIN) $(COMPONENT) $(REPO_URI)' 'Created-By: Packages' |
	awk '$1 == "Debian" && $2 == "main" && $3 !~ /security/ { print $3; exit }')
[[ -n $mirror ]] || die "no mirror of Debian is known to apt: run apt-get update, or put kernels into $vm by hand (docs/design/front-ends.md)"
[[ -e $keyring ]] || die "$keyring is missing: install debian-archive-keyring"

# apt NAME...: apt with lists and settings of its own below $vm/apt/SUITE.
apt() {
	local program=$1
	shift
	APT_CONFIG=$vm/apt/$suite/apt.conf "$program" "$@"
}

fetch() {
	local suite=$1 own=$vm/apt/$1 package version deb part
	mkdir -p "$own/lists/partial" "$own/archives/partial" "$own/debs"
	cat >"$own/apt.conf" <<-EOF
		Dir::State "$own";
		Dir::State::lists "$own/lists";
		Dir::State::status "/dev/null";
		Dir::Cache "$own";
		Dir::Etc::sourcelist "$own/sources.list";
		Dir::Etc::sourceparts "-";
		APT::Architecture "amd64";
		APT::Architectures "amd64";
		APT::Sandbox::User "root";
		Acquire::Languages "none";
	EOF
	echo "deb [signed-by=$keyring] $mirror $suite main" >"$own/sources.list"
	apt apt-get update -q
	# The meta package names the newest one. Newer kernels keep their modules in
	# a package of their own.
	package=$(apt apt-cache depends linux-image-cloud-amd64 | sed -n 's/.*Depends: \(linux-image-[0-9].*\)/\1/p' | head -1)
	[[ -n $package ]] || die "$suite has no linux-image-cloud-amd64"
	version=${package#linux-image-}
	local packages=("$package")
	for part in base binary modules; do
		! apt apt-cache show "linux-$part-$version" >/dev/null 2>&1 || packages+=("linux-$part-$version")
	done
	(cd "$own/debs" && rm -f ./*.deb && apt apt-get download -q "${packages[@]}")
	rm -rf "${vm:?}/$suite"
	mkdir -p "$vm/$suite"
	for deb in "$own"/debs/*.deb; do
		dpkg-deb -x "$deb" "$vm/$suite"
	done
	local base=$vm/$suite
	[[ -d $base/lib/modules ]] || { mkdir -p "$base/lib" && ln -s ../usr/lib/modules "$base/lib/modules"; }
	[[ -e $base/lib/modules/$version ]] || die "$package has no modules for $version"
	cp "$(compgen -G "$base/boot/vmlinuz-*" || compgen -G "$base/lib/modules/$version/vmlinuz")" "$base/vmlinuz"
	depmod -b "$base" "$version"
	echo "$version" >"$base/version"
	touch "$base/complete"
	rm -rf "$own"
	echo "vm-kernels: $suite is $version"
}

for suite in "${missing[@]}"; do
	fetch "$suite"
done
