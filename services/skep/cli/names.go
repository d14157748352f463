package cli

import (
	"math/rand/v2"
)

var (
	adjectives = []string{"amber", "brave", "calm", "clever", "eager", "gentle", "golden", "happy", "humble", "keen", "lively", "lucky", "merry", "mighty",
		"nimble", "patient", "proud", "quiet", "quick", "sharp", "sturdy", "sunny", "swift", "tidy", "vivid", "warm", "wild", "wise", "witty", "woven"}
	nouns = []string{"acorn", "badger", "basil", "bee", "beech", "brook", "clover", "comb", "drone", "fern", "finch", "hazel", "heath", "heron", "hive", "honey",
		"ivy", "linden", "maple", "meadow", "nectar", "orchard", "otter", "pollen", "reed", "robin", "rowan", "sage", "thistle", "thyme", "wax", "willow"}
)

// randomName is for a service nobody named, as Docker does it; the state service refuses the rare double.
func randomName() string {
	return adjectives[rand.IntN(len(adjectives))] + "_" + nouns[rand.IntN(len(nouns))]
}
