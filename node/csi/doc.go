// Package nodecsi is the CSI v1.13 Node service: it makes volumes appear at the
// paths an orchestrator asks for, as mounted filesystems or as block devices.
//
// It promises:
//   - It attaches a volume by itself when nobody did so before, and then also
//     detaches it when its last path is gone. Where an orchestrator's controller
//     published the volume (a publish context came along), detaching is left to it.
//   - It never stacks a mount: what the kernel says (/proc/self/mountinfo) decides,
//     and a repeated call for a path changes nothing.
//   - It answers OK to NodeUnpublishVolume and NodeUnstageVolume only when nothing
//     is mounted at or below the path any more: Mesos then deletes the directory
//     recursively, across mounts, so a false OK is a loss of data.
//   - A path that it mounts on refuses writes while the mount is away, because its
//     device died, until it is unpublished or unstaged (package internal/mountpoint;
//     where the path's filesystem can do that).
//   - It formats only a device that is provably empty.
//   - It unmounts only what is its own, and lazily only where the device is dead.
//   - Work goes on when its caller's deadline passes; the repeated call joins it.
//
// It does not make devices (its Volumes does), and does not change a volume's
// size (the controller does).
//
// State: one file per volume in Config.StateDir, named by the volume's id,
//
//	{"version":1, "volume":ID, "names":[...], "fsType":..., "bootId":...,
//	 "orchestrated":bool, "formatting":bool, "entries":[...]}
//
// written (and synced) before a mount is made and after it is gone. It says
// which paths are ours and who detaches; whether something is mounted is always
// asked of the kernel. Entries of an earlier boot are void.
//
// It owns one goroutine per call under way, which ends with the call's work.
package nodecsi
