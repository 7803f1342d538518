// Package api serves the users' API: gRPC, the REST gateway generated from it
// and its OpenAPI description, all on one TCP port and on a Unix socket.
//
// It promises that every answer about state is made from the records at the
// moment of the call, with what the nodes say added where that was asked for,
// and that a node that does not answer delays it by a bounded time only. Every
// problem that it reports comes with what to do about it. It decides nothing:
// operations are handed to the lifecycle. There is no authentication yet: by
// default it listens where only this machine can reach it, and it refuses
// requests that a web page from elsewhere makes a browser send.
//
// Goroutines: one per listener and what gRPC and net/http start for them, all
// ended when Serve returns.
package api
