// Package holdfastv1 is generated from node.proto and api.proto: messages,
// clients, servers and the REST gateway. It promises what the comments in those
// files say, does nothing itself and owns no goroutine.
package holdfastv1

import _ "embed" // for the description below

//go:embed api.swagger.json
var openAPI []byte

// OpenAPI is the users' API as an OpenAPI 2.0 document in JSON.
func OpenAPI() []byte { return append([]byte(nil), openAPI...) }
