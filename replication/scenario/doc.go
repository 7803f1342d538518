// Package scenario is the catalogue of what goes wrong with replicated volumes:
// one story a file in stories/, named after what went wrong elsewhere, each with
// where that was and what must be true here. The tests tell every story to the
// real machines in package sim, under several seeds.
//
// A story is made of lines. What is not expected fails it; at its end, unless
// it says otherwise, all troubles end, the volume must become well, and the
// history of every block and the equality of the replicas are checked.
//
//	cluster [hosts=3] [replicas=2] [min-in-sync=1] [blocks=64]   comes first
//	        [repair=BYTES/s] [silent=SECONDS] [window=SECONDS] [slow=SECONDS]
//	attach N [force|refused|later]     detach N
//	write LABEL FIRST [COUNT] [fua|later|waits] [on N]
//	trim FIRST COUNT    flush [later|waits LABEL]    [on N]
//	read FIRST [COUNT] = LABEL|0|A|B..   read waits LABEL FIRST COUNT   [on N]
//	answered LABEL    unanswered LABEL [5s]    failed LABEL
//	kill N..   power N..   power-hard N..   start N..   (all: every node)
//	cut A B    one-way A B    mend A B    isolate N    rejoin N
//	metadata off|on [N]    snapshot    rollback [bumped]
//	pause|slow|stuck N 10s    full|free|break N
//	busy 20s (writes to blocks 32 to 47 meanwhile, not waited for)
//	io-timeout 5s   slow-replicas off|report|drop   says WORDS..
//	grow BLOCKS   min-in-sync K   label TEXT   leave N   add N   remove N
//	take|want|ready|still-wanted|delete|gone SNAPSHOT    want SNAPSHOT GROUP
//	restore SNAPSHOT   maintain N   restored N
//	hold TOKEN [1s] [refused]   cut-group TOKEN SNAPSHOT [refused]   unhold TOKEN [refused]
//	holds N SNAPSHOT BLOCK = LABEL|0|A|B..   lacks N SNAPSHOT   shares N N   snapshots-well
//	differs SNAPSHOT OLDER BLOCK [not]
//	wait 5s    serving N    not-serving N 10s
//	in-sync N.. (exactly, within 30 s)    still in-sync N.. (now)    healthy
//	sized BLOCKS (record and device, within 30 s)
//	ended N [fenced|corrupt]    io-waits N    disk N BLOCK = LABEL|0
//	epoch note    epoch same    repaired N at-most|at-least BLOCKS    equal
//	the end [unserved]    as it is: the cluster is not healed; history and equality
//	are checked, or, where nothing can serve the volume, the history alone
//
// It does not know the order of single messages: the tests by hand in package
// replication do. It owns no goroutines.
package scenario
