package spec

import (
	"math/rand/v2"
	"strings"
)

// RandomName makes a name for a service created without one: an adjective and something that lives near a hive.
func RandomName() string {
	return left[rand.IntN(len(left))] + "_" + right[rand.IntN(len(right))]
}

var (
	left = strings.Fields(`amber ample brave bright brisk busy calm candid clever cosy crisp curious daring deft eager early
		fair fleet fond frank gentle glad golden grand hardy honest humble jolly keen kind lively loyal lucid mellow merry mild neat
		nimble noble patient placid proud quick quiet ready serene sharp silent smart snug sober solid steady stout sunny swift tidy
		tranquil upbeat vivid warm wise witty young zesty`)
	right = strings.Fields(`alder apiary aster bee beech bloom blossom borage bramble brood buzz clover comb crocus dahlia dance
		drone fern field forage garden hawthorn hazel heather hive honey hornet ivy keeper lavender lilac linden lupin mead meadow
		mint mullein nectar orchard pasture petal pollen poppy propolis queen rapeseed rosemary sage scout skep smoker spruce
		sunflower swarm thistle thyme veil violet wasp wax willow worker yarrow`)
)
