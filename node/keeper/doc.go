// Package keeper holds what must outlive the daemon: the open descriptors of its
// block devices. The keeper is the daemon's parent: it starts the daemon, takes
// descriptors from it over a socket, and when the daemon has died, crashed or is
// to be replaced by another version, starts the next one, which asks for them.
// Applications see their I/O wait meanwhile, never fail.
//
// It promises that what was put is there for the next daemon until it is dropped,
// that two daemons are never started at once, that what a daemon leaves running
// (a mkfs) is killed before the next one starts, and that the memory of the
// keeper is locked, so that it never waits for a disk that its own daemon
// serves. It does not look into what it holds, and knows nothing of volumes.
//
// The keeper's own end closes its copies only: the daemon goes on with its own,
// notices (Client.Lost), and says so; until it is started under a keeper again,
// its death means I/O errors.
//
// Goroutines: Run owns one for the signals, and one for each daemon's socket,
// all ended when it returns. A Client owns none.
package keeper
