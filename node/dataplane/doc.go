// Package dataplane runs a node's primaries and replicas for real: the state
// machines of package replication over TCP connections, engine replicas and the
// metadata store.
//
// It promises that the machines of one volume run one event at a time, under the
// volume's mutex; that their ports never block and never call back from inside a
// call; that messages of a connection arrive in order or not at all, and that a
// connection's end is reported exactly once; and that everything waits for a
// bounded time only, but for a task that the disk does not finish. It decides
// nothing about protocol or membership: the machines do.
//
// # How a volume runs
//
// Each volume that has a replica or a primary here has one mutex and one run
// queue. An event (a request of the device, a batch of messages of a connection,
// finished tasks of the store, a tick) takes the mutex, calls the machine, then
// drains the run queue, then wakes the writers of the connections to which
// something was sent. Where only one request is under way, the goroutine of the
// event does more after it has given the mutex back: it sends what there is if
// the socket takes it at once, and does a short read or write of a fast disk that
// a connection has brought. With many under way, writers gather and workers
// overlap, which is better then: a worker takes all the short
// reads and writes that are queued, and does them with one system call, as long
// as the disk is fast. A primary and a replica on the same node talk through the
// run queue: a message between them is an entry in it, so that there is neither
// recursion nor a hand-over to another goroutine.
//
// Locks: a volume's mutex is taken first; Plane.mu, a connection's and a store's
// mutex are leaves, and no two of them are held at once.
//
// # Time
//
// A primary is told every 50 ms that time has passed, but for one at rest: that one
// says when it needs to be told, and is left alone until then, or until its next event.
// Meanwhile one volume of all that have a replica on a node asks that node whether it
// lives.
//
// # Goroutines
//
// One for ticks and one that watches the records, from New until Close; one per
// Serve; a reader and a writer per connection; one per dial, and per read or
// swap of a record, for a bounded time; up to Config.Workers per replica while
// it has work, which end when it is idle; one per Open until it serves, one per
// replica that is being removed. All have ended when Close returns.
package dataplane
