// Package frontends chooses the front end of a node: by what its kernel can, what
// is known to be wrong with it, and what the configuration says. The choice is
// pure (Order, Refused); docs/design/front-ends.md gives the reasons.
//
// It promises that devices which a predecessor made by another front end are
// still adopted or cleaned up: a daemon can be restarted with another choice
// while volumes are in use. It owns no goroutine.
package frontends
