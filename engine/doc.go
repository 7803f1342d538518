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
//	    meta                  volume, replica, suspects, age of the change maps,
//	                          snapshots, origin of a clone, progress
//	                          of a repair (sealed)
//	    data                  the volume's blocks, a sparse file of the volume's size
//	    record                newest record shown (sealed)
//	    promise               epoch and grant promised (sealed)
//	    intent                4 MiB regions that a power loss may have changed
//	    tail                  writes that may be applied here and nowhere else
//	    changes/<epoch>       4 KiB blocks written in that epoch
//	    owned                 of a clone that depends on its origin: what is its own
//	    snapshots/<n>.snapshot  what changed since a snapshot; meta says which has n
//	    snapshots/held        which granules these have, when it was closed (sealed)
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
// tail: 64 KiB. 64 bytes of header ("HFTAIL\0\0", version u32,
// slots u32, crc u32; then overflow u32, mixed u32, and grant u64 and seq u64 of
// the newest write that found no slot), then slots of 64 bytes: valid u32 (0:
// free; else the CRC32C of the 32 bytes from 8 on, 1 standing for 0), grant u64,
// seq u64, offset u64, length u64. valid is stored last, and cleared first.
//
// changes: one page of header ("HFCHANGE", version u32, crc u32 of magic,
// version and epoch; epoch u64), then one bit for each block; space is allocated
// before bits are stored, in steps of 64 KiB.
//
// # Memory
//
// What every write stores to is in mapped files of a filesystem in the machine's
// memory (tmpfs, mounted for each pool beside it): a store there is never a page
// fault that waits for the disk. It survives the process and not the machine,
// which is what a tail needs, and a change map between two syncs.
//
//	<replica>/tail            the tail
//	<replica>/<epoch>         the bits of a change map
//
// Each has a page of header first: "HFMEMORY", version u32, crc u32 (of magic,
// version, id and the file's name), id (32 hexadecimal digits); then the content of
// the file of the same name on the pool, without that one's header for a change map.
//
// meta names the id while the replica is open, from the moment when the memory has
// all that the files have. Closing in good order writes the tail to its file and
// takes the id out of meta, durably. So an id in meta says that the files of tail
// and change maps are old: the tail's has nothing that counts, a change map's has
// what was synced. When the memory of that id is not there then, whole, the
// replica is treated as after a loss of power, and State says so by another Boot.
//
// snapshots/<n>.snapshot: sparse; the granules of 64 KiB that were changed since
// the snapshot was taken, up to the next newer one, at their own places, with
// their content of then; the blocks are shared, not copied. A granule that had no
// data has one page, allocated and never written. Behind, from the snapshot's
// size rounded up to 64 KiB on, there is a page for each granule, allocated while
// that granule is being taken over in more than one step: what is in it does not
// count. Everything else is a hole. owned: sparse, one page for each granule that
// a clone owns beyond the first ones that its meta counts.
//
// Versions are constants beside each codec; all are 1, the first, but that of
// meta, which is 2 when there are snapshots or an origin, or were: a release that
// does not know them would overwrite what they need. It is 3 while it names a
// memory: a release that does not know it would believe old files.
//
// # Promises
//
// A write goes to the tail, then its regions' intents are durable, then the data
// is written, then the change map's bits are set: so that whatever a killed
// process or a power loss leaves half-done is named by tail, intents or change
// maps. The memory survives a killed process by itself; after a power loss, or
// without the memory, all regions with an intent are suspects, which stay until
// Settle. An intent goes only after a flush that covers all its writes, a sync
// of the change maps, and when no write in its region may be missing elsewhere.
//
// Snapshots are kept by reverse copy-on-write: the live data is in data alone,
// and before a granule is changed for the first time, its blocks are shared into
// the newest snapshot's file. A snapshot's content never changes, whatever
// crashes; a granule that it does not have is in the next newer one, or in data.
// That holds because of the order in which a filesystem's log makes the lists of
// files' blocks durable: see disk.Sharing and docs/design/snapshots.md.
//
// A disk that does not answer holds up who reads, writes or syncs, and nobody else:
// State, Snapshots, Commit and Err wait for no disk.
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
