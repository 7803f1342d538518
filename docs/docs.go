// Package docs holds the documents that the program itself shows, beside those
// that are only read here.
//
// It promises that what is shown is of the same release as the program. It decides
// nothing and owns no goroutine.
package docs

import _ "embed"

// NodeYAML is the commented example of a daemon's configuration.
//
//go:embed node.yaml
var NodeYAML string
