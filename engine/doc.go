// Package engine keeps replicas on pools: one disk, formatted with XFS and owned
// by Holdfast, or a plain directory for tests and simulations.
//
// # Layout
//
//	holdfast.json             identity of the pool (sealed)
//	lock                      held exclusively by the daemon that has the pool open
//	mounted                   sealed; a number that changes with every mounting
//	replicas/.new-<replica>   being created; never finished if found when a pool is opened
//	replicas/.gone-<replica>  being removed; removal is completed when found
//	replicas/<replica>/
//	    meta                  volume, replica, suspects, age of the change maps (sealed)
//	    data                  the volume's blocks, a sparse file of the volume's size
//	    record                newest record shown (sealed)
//	    promise               epoch and grant promised (sealed)
//	    intent                4 MiB regions that a power loss may have changed
//	    tail                  writes that may be applied here and nowhere else
//	    changes/<epoch>       4 KiB blocks written in that epoch
//	    snapshots/            the place of snapshots
//
// Sealed files are JSON after one line "holdfast <what> v<version> crc32c=<hex>",
// replaced whole: temporary file, fsync, rename, fsync of the directory. Numbers
// in the binary files are little-endian, and so must the machine be.
//
// intent: pages of 4096 bytes, each closed by the CRC32C of the rest in its last
// four bytes. Page 0: "HFINTENT", version u32, length u16 and text of the
// instance (boot, and mounting) that wrote it. Every other page: 511 words of 64
// regions. Pages are written directly and synchronously.
//
// tail: 64 KiB, memory-mapped. 64 bytes of header ("HFTAIL\0\0", version u32,
// slots u32, crc u32; then overflow u32, mixed u32, and grant u64 and seq u64 of
// the newest write that found no slot), then slots of 64 bytes: valid u32 (0:
// free; else the CRC32C of the 32 bytes from 8 on, 1 standing for 0), grant u64,
// seq u64, offset u64, length u64. valid is stored last, and cleared first.
//
// changes: one page of header ("HFCHANGE", version u32, crc u32 of magic,
// version and epoch; epoch u64), then one bit for each block, memory-mapped;
// space is allocated before bits are stored, in steps of 64 KiB.
//
// Versions are constants beside each codec; all are 1, the first.
//
// # Promises
//
// A write goes to the tail, then its regions' intents are durable, then the data
// is written, then the change map's bits are set: so that whatever a killed
// process or a power loss leaves half-done is named by tail, intents or change
// maps. The tail and the change maps survive a killed process by themselves;
// after a power loss all regions with an intent are suspects, which stay until
// Settle. An intent goes only after a flush that covers all its writes, a sync
// of the change maps, and when no write in its region may be missing elsewhere.
//
// A failed write or sync fails the replica for good (kind Corrupt): what it kept
// is unknown. A full pool is kind NoSpace, changes nothing, and is stopped ahead
// of the wall by a reserve, so that metadata always fits.
//
// Nothing is deleted on absence (invariant 8): a replica's directory goes only
// by Remove, or when it was never finished.
//
// The package does not decide who may write when, does not verify data against
// other replicas, and does not repair. All methods may be called by several
// goroutines at once; it owns none itself. No clock is read except to bound the
// wait for a lock on a device.
package engine
