package replication

// Mutation is a deliberate fault in the protocol. The simulation must catch each
// (make sim-mutations). They exist only in builds with the tag "mutations";
// otherwise mutant is constantly false and the compiler leaves them out.
type Mutation uint8

// The mutations, named by the invariant that they break.
const (
	MutateNone              Mutation = iota
	Mutate1AcceptOlder               // a replica welcomes an older epoch than it has promised
	Mutate1NoDrain                   // a replica welcomes while older writes are still under way
	Mutate1ForgetPromise             // a promise is not made durable
	Mutate2AckBeforeCommit           // a dropped replica's answer is not waited for from the decision on
	Mutate2AckBeforePromise          // nor from the commit on, before the others have promised
	Mutate2ForgetUnknown             // a candidate is forgotten while its promotion may still be committed
	Mutate3NoWindow                  // reads are answered however long nobody was heard
	Mutate3NoQuiet                   // a new primary does not wait for the old one's reads to end
	Mutate3ReadRebuilding            // reads may go to a replica under repair
	Mutate4FlushNothing              // a replica answers a flush without doing it
	Mutate4PromoteUnflushed          // a repaired replica is not flushed
	Mutate4FlushFirst                // a flush is done when the first replica has answered
	Mutate5NoLock                    // overlapping writes do not wait for each other
	Mutate5EarlyUnlock               // a range is free though a replica under repair has not answered
	Mutate5SendTwice                 // a rejoining replica gets what it already has on the way
	Mutate6NoReconcile               // a take-over leaves the tails as they are
	Mutate6UndoneNotDurable          // what it undoes is not flushed
	Mutate6KeepSuspects              // replicas with suspects stay in sync
	Mutate6ForgetFailed              // a write that failed for the application is forgotten
	Mutate7NoMarks                   // what a dropped replica has not answered is not marked
	Mutate7NoOwnTail                 // a returning replica's own tail is not repaired
	Mutate7NoSuspects                // its suspects are not compared
	Mutate7NoFlying                  // writes under way when a repair begins are forgotten
	Mutate7NoTeaching                // a repaired replica does not learn what others lack
	Mutate7NoTailMarks               // reconciled tails are not marked for those away
	Mutate9CarryOn                   // a live primary goes on with a replica that lost power
	Mutate9DropLast                  // the last in-sync replica is replaced by a stale one
	MutationEnd
)
