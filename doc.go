// Package holdfast is the vocabulary of Holdfast: identities, the records kept
// in the metadata store, their states, and the closed set of error kinds.
//
// It promises that everything here is plain data with pure functions over it.
// It imports the standard library only, everybody may import it, and it owns
// no goroutine and no state.
package holdfast
