//go:build mutations

package replication

// Mutant is the deliberate fault that is switched on.
var Mutant Mutation

// mutant says whether a deliberate fault is switched on.
func mutant(m Mutation) bool { return Mutant == m }

// MutationInfo is one mutation as a person knows it.
type MutationInfo struct {
	Mutation
	Rule   string // the invariant's number, or what else it breaks
	Name   string
	Broken string // what it does
}

// Mutations lists all.
func Mutations() []MutationInfo {
	return []MutationInfo{
		{Mutate1AcceptOlder, "1", "AcceptOlder", "a replica welcomes an older epoch than it has promised"},
		{Mutate1NoDrain, "1", "NoDrain", "a replica welcomes while older writes are still under way"},
		{Mutate1ForgetPromise, "1", "ForgetPromise", "a promise is not made durable"},
		{Mutate2AckBeforeCommit, "2", "AckBeforeCommit", "a dropped replica's answer is not waited for from the decision on"},
		{Mutate2AckBeforePromise, "2", "AckBeforePromise", "nor from the commit on, before the others have promised"},
		{Mutate2ForgetUnknown, "2", "ForgetUnknown", "a candidate is forgotten while its promotion may still be committed"},
		{Mutate3NoWindow, "3", "NoWindow", "reads are answered however long nobody was heard"},
		{Mutate3NoQuiet, "3", "NoQuiet", "a new primary does not wait for the old one's reads to end"},
		{Mutate3ReadRebuilding, "3", "ReadRebuilding", "reads may go to a replica under repair"},
		{Mutate4FlushNothing, "4", "FlushNothing", "a replica answers a flush without doing it"},
		{Mutate4PromoteUnflushed, "4", "PromoteUnflushed", "a repaired replica is not flushed"},
		{Mutate4FlushFirst, "4", "FlushFirst", "a flush is done when the first replica has answered"},
		{Mutate4IgnoreFUA, "4", "IgnoreFUA", "a replica writes without FUA what was to be durable at once"},
		{Mutate5NoLock, "5", "NoLock", "overlapping writes do not wait for each other"},
		{Mutate5EarlyUnlock, "5", "EarlyUnlock", "a range is free though a replica under repair has not answered"},
		{Mutate5SendTwice, "5", "SendTwice", "a rejoining replica gets what it already has on the way"},
		{Mutate6NoReconcile, "6", "NoReconcile", "a take-over leaves the tails as they are"},
		{Mutate6CopiesUntold, "6", "CopiesUntold", "what a take-over has copied to one replica is in no tail"},
		{Mutate6UndoneNotDurable, "6", "UndoneNotDurable", "what a take-over undoes is not flushed"},
		{Mutate6KeepSuspects, "6", "KeepSuspects", "replicas with suspects stay in sync"},
		{Mutate6ForgetFailed, "6", "ForgetFailed", "a write that failed for the application is forgotten"},
		{Mutate7NoMarks, "7", "NoMarks", "what a dropped replica has not answered is not marked"},
		{Mutate7NoOwnTail, "7", "NoOwnTail", "a returning replica's own tail is not repaired"},
		{Mutate7NoSuspects, "7", "NoSuspects", "nobody's suspects are compared"},
		{Mutate7NoSourceSuspects, "7", "NoSourceSuspects", "the source's own suspects are neither compared nor marked"},
		{Mutate7NoFlying, "7", "NoFlying", "writes under way when a repair begins are forgotten"},
		{Mutate7NoTeaching, "7", "NoTeaching", "a repaired replica does not learn what others lack"},
		{Mutate7NoTailMarks, "7", "NoTailMarks", "reconciled tails are not marked for those away"},
		{Mutate7DroppedSource, "7", "DroppedSource", "a repair goes on from a source that was dropped"},
		{Mutate7ResumeForgets, "7", "ResumeForgets", "a resumed repair forgets what changed since"},
		{Mutate7ProgressTooFar, "7", "ProgressTooFar", "the progress of a repair counts pieces that are under way"},
		{Mutate7ProgressEarly, "7", "ProgressEarly", "the progress of a repair does not wait for writes of earlier epochs"},
		{Mutate9CarryOn, "9", "CarryOn", "a live primary goes on with a replica that lost power"},
		{Mutate9DropLast, "9", "DropLast", "the last in-sync replica is replaced by a stale one"},
		{Mutate10KeepOldRecord, "10", "KeepOldRecord", "a replica promises an epoch without keeping its record"},
		{Mutate10NoTelling, "10", "NoTelling", "replicas are not shown what changes within an epoch"},
		{MutateRollbackUnseen, "rollback", "Unseen", "a replica takes a record that contradicts the one it has kept"},
		{MutateRollbackGoOn, "rollback", "GoOn", "a primary goes on without the replica that has seen another history"},
		{MutateScrubMinority, "scrub", "Minority", "the majority's copies are taken for damaged"},
		{MutateScrubNoMarks, "scrub", "NoMarks", "damaged blocks are not marked for the repair"},
		{MutateScrubNoLock, "scrub", "NoLock", "what differs is judged without the range lock"},
		{MutateSnapCutInFlight, "snapshot", "CutInFlight", "a snapshot is cut without waiting for writes under way"},
		{MutateSnapCommitEarly, "snapshot", "CommitEarly", "it is committed when the first replica has it"},
		{MutateSnapKeepLeftovers, "snapshot", "KeepLeftovers", "what attempts that came to nothing have left is not dropped"},
		{MutateSnapLiveTooEarly, "snapshot", "LiveTooEarly", "live writes are sent to a replica that lacks snapshots"},
		{MutateSnapStayLive, "snapshot", "StayLive", "a repair that is live goes on getting live writes after a snapshot"},
		{MutateSnapPromote, "snapshot", "Promote", "a replica becomes in sync without the snapshots that it lacks"},
	}
}
