package daemon

import (
	"errors"
	"net"
	"testing"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/controller/reconcile"
	"github.com/holdfast-storage/holdfast/internal/rpc"
	"github.com/holdfast-storage/holdfast/metadata/memory"
)

func TestWhatTheLeaderFoundIsKnownEverywhere(t *testing.T) {
	store := memory.New()
	t.Cleanup(func() { _ = store.Close() })
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := rpc.Config{}.NewServer()
	service := &controllerService{problems: func() []reconcile.Problem {
		return []reconcile.Problem{{Volume: "db", Node: "n1", Text: "what", Remedy: "do"}}
	}}
	service.register(srv)
	go func() { _ = srv.Serve(l) }()
	t.Cleanup(srv.Stop)
	if _, err := store.PutNode(t.Context(), holdfast.Node{Version: holdfast.NodeVersion, ID: "n2", APIAddr: l.Addr().String()}); err != nil {
		t.Fatal(err)
	}
	conns := rpc.NewConns(rpc.Config{})
	t.Cleanup(func() { _ = conns.Close() })
	none := &controllerService{problems: func() []reconcile.Problem { return nil }}
	for self, own := range map[string]*controllerService{"n1": none, "n2": service} {
		fs, err := leadersFindings{self: self, own: own, clients: newNodeClients(store, conns)}.Findings(t.Context(), "n2")
		if err != nil || len(fs) != 1 || fs[0].GetVolume() != "db" || fs[0].GetNode() != "n1" || fs[0].GetWhat() != "what" || fs[0].GetRemedy() != "do" {
			t.Errorf("asked on %s: %v, %v", self, fs, err)
		}
	}
	_, err = leadersFindings{self: "n1", own: none, clients: newNodeClients(store, conns)}.Findings(t.Context(), "n3")
	if !errors.Is(err, holdfast.NotFound) {
		t.Errorf("an unknown leader: %v", err)
	}
}
