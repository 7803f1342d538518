package replication

// Mutation is a deliberate fault in the protocol. The simulation must catch each
// (make sim-mutations). They exist only in builds with the tag "mutations";
// otherwise mutant is constantly false and the compiler leaves them out.
type Mutation uint8

// The mutations, named by the invariant that they break; Mutations says what
// each does. Those of invariant 8 are in node/agent, which upholds it.
const (
	MutateNone Mutation = iota
	Mutate1AcceptOlder
	Mutate1NoDrain
	Mutate1ForgetPromise
	Mutate2AckBeforeCommit
	Mutate2AckBeforePromise
	Mutate2ForgetUnknown
	Mutate3NoWindow
	Mutate3NoQuiet
	Mutate3ReadRebuilding
	Mutate4FlushNothing
	Mutate4PromoteUnflushed
	Mutate4FlushFirst
	Mutate4IgnoreFUA
	Mutate5NoLock
	Mutate5EarlyUnlock
	Mutate5SendTwice
	Mutate6NoReconcile
	Mutate6CopiesUntold
	Mutate6UndoneNotDurable
	Mutate6KeepSuspects
	Mutate6ForgetFailed
	Mutate7NoMarks
	Mutate7NoOwnTail
	Mutate7NoSuspects
	Mutate7NoSourceSuspects
	Mutate7NoFlying
	Mutate7NoTeaching
	Mutate7NoTailMarks
	Mutate7DroppedSource
	Mutate7ResumeForgets
	Mutate7ProgressTooFar
	Mutate7ProgressEarly
	Mutate9CarryOn
	Mutate9DropLast
	Mutate10KeepOldRecord
	Mutate10NoTelling
	MutateRollbackUnseen
	MutateRollbackGoOn
	MutateScrubMinority
	MutateScrubNoMarks
	MutateScrubNoLock
	MutateSnapCutInFlight
	MutateSnapCommitEarly
	MutateSnapKeepLeftovers
	MutateSnapLiveTooEarly
	MutateSnapStayLive
	MutateSnapPromote
	MutationEnd
)
