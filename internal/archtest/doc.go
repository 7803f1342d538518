// Package archtest holds the house rules as tests: who may import whom, how
// large things may be, what every package says about itself, and habits that
// hurt other projects. A failure says what to do about it.
//
// It promises to look at every Go file of the module as it stands, generated
// code excepted, without building anything and within a second or two. Where a
// rule has to bend, it does so on a list in this package, with a reason that a
// reader can check; an entry that is not needed any more is a failure, too.
// It has no code but tests and owns no goroutine.
package archtest
