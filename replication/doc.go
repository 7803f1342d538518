// Package replication is the protocol that keeps a volume's replicas the same:
// the Primary, which serves a volume's I/O, and the Replica, which applies one
// primary's writes to a store and refuses everybody else's.
//
// Both are deterministic state machines. A method is an event; what it causes
// goes out through the small interfaces of this file (Conn, Dialer, Records,
// Store, Clock), none of which may block or call back into the machine from
// inside the call: their results come in as later events. Neither machine locks:
// its owner calls it from one goroutine at a time (in production under the
// volume's mutex, in the simulation from a seeded scheduler).
//
// The package promises the ten invariants listed in ARCHITECTURE.md, which the
// code cites where it upholds them. It does not touch disks, networks, clocks,
// the metadata store or a log, and it owns no goroutines.
package replication
