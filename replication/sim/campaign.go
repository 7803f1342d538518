package sim

import (
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"
)

// Campaign is many runs, on all cores.
type Campaign struct {
	Seed    uint64
	Runs    int
	Kinds   []string              // of faults; empty: all
	Run     func(c Config) Result // nil: Run
	Change  func(c *Config)       // what differs from Default; nil: nothing
	Every   time.Duration         // between lines of progress; 0: none
	Print   func(line string)     // takes them
	Workers int                   // 0: one for each core
}

// Summary is what a campaign did.
type Summary struct {
	Runs       int
	Operations int
	Virtual    time.Duration // all runs together
	Took       time.Duration
	Coverage   Coverage
	Failed     *Failure // the one with the lowest seed; nil: none
}

// Failure is a run that broke a promise.
type Failure struct {
	Config Config
	Result Result
}

// Rate is in runs per second.
func (s *Summary) Rate() float64 { return float64(s.Runs) / max(s.Took.Seconds(), 1e-9) }

// Do runs the seeds; after a failure those below it are finished, others are not
// begun.
func (c Campaign) Do() Summary {
	if c.Run == nil {
		c.Run = Run
	}
	if c.Workers == 0 {
		c.Workers = runtime.GOMAXPROCS(0)
	}
	began := time.Now()
	var mu sync.Mutex
	var wg sync.WaitGroup
	sum, next, shown := Summary{Coverage: Coverage{}}, 0, began
	take := func() (Config, bool) {
		mu.Lock()
		defer mu.Unlock()
		if next >= c.Runs || sum.Failed != nil {
			return Config{}, false
		}
		next++
		return c.config(c.Seed + uint64(next) - 1), true
	}
	give := func(cfg Config, res Result) {
		mu.Lock()
		defer mu.Unlock()
		sum.add(cfg, res)
		sum.Took = time.Since(began)
		if c.Every > 0 && time.Since(shown) >= c.Every {
			shown = time.Now()
			c.Print(fmt.Sprintf("%d of %d runs, %.1f a second, %.1f virtual s each", sum.Runs, c.Runs, sum.Rate(), sum.Virtual.Seconds()/float64(sum.Runs)))
		}
	}
	for range c.Workers {
		wg.Go(func() {
			for cfg, ok := take(); ok; cfg, ok = take() {
				give(cfg, c.Run(cfg))
			}
		})
	}
	wg.Wait()
	return sum
}

func (c Campaign) config(seed uint64) Config {
	cfg := Default(seed)
	if len(c.Kinds) > 0 && len(c.Kinds) < len(Faults()) {
		cfg.Kinds = c.Kinds
	}
	if c.Change != nil {
		c.Change(&cfg)
	}
	return cfg
}

func (s *Summary) add(cfg Config, res Result) {
	s.Runs++
	s.Operations += res.Operations
	s.Virtual += res.Virtual
	s.Coverage.add(res.Coverage)
	if res.Err != nil && (s.Failed == nil || cfg.Seed < s.Failed.Config.Seed) {
		s.Failed = &Failure{cfg, res}
	}
}

// Lines is a summary as a person reads it.
func (s *Summary) Lines() []string {
	out := []string{fmt.Sprintf("%d runs, %d operations, %.1f runs a second, %.1f virtual s each", s.Runs, s.Operations, s.Rate(), s.Virtual.Seconds()/float64(max(1, s.Runs)))}
	group, line := "", ""
	for _, name := range slices.Sorted(keys(s.Coverage)) {
		g, x, _ := strings.Cut(name, ": ")
		if g != group {
			if line != "" {
				out = append(out, line)
			}
			group, line = g, g+":"
		}
		line += fmt.Sprintf(" %s %d;", x, s.Coverage[name])
	}
	out = append(out, line)
	never := s.Coverage.Never()
	return append(out, fmt.Sprintf("never reached, of %d: %s", len(States()), strings.Join(never, "; ")))
}

// Shrunk is a failing run with as few choices as were found to fail in the same
// way.
type Shrunk struct {
	From, To int // choices
	Tries    int
	Config   Config // has Only
	Result   Result // with its trace
}

// Shrink leaves out choices of a failed run as long as it breaks the same promise:
// halves, quarters and so on down to single ones, until none can be left out, or
// after so many tries.
func Shrink(f Failure, run func(Config) Result, tries int) Shrunk {
	if run == nil {
		run = Run
	}
	s := Shrunk{From: len(f.Result.Choices), Config: f.Config, Result: f.Result}
	what := breachOf(f.Result.Err)
	keep := f.Result.Choices
	fails := func(try []Choice) bool {
		s.Tries++
		cfg := f.Config
		cfg.Only = make(map[Choice]bool, len(try))
		for _, x := range try {
			cfg.Only[x] = true
		}
		res := run(cfg)
		if res.Err == nil || breachOf(res.Err) != what {
			return false
		}
		keep, s.Config, s.Result = res.Choices, cfg, res // it may not even have come to some of them
		return true
	}
	for parts := 2; s.Tries < tries && len(keep) > 0; {
		smaller := false
		size := (len(keep) + parts - 1) / parts
		for at := len(keep); at > 0 && s.Tries < tries; at -= size {
			at = min(at, len(keep))
			smaller = fails(slices.Concat(keep[:max(0, at-size)], keep[at:])) || smaller
		}
		switch {
		case size > 1:
			parts = min(2*parts, max(1, len(keep)))
		case !smaller:
			tries = 0 // no single one can be left out
		}
	}
	s.Config.Trace, s.To = true, len(keep)
	s.Result = run(s.Config)
	return s
}
