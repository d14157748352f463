package kv

// HalfWay makes the next passes end with an error before they remove anything: after the checkpoint was written.
func (c *Compactor) HalfWay(err error) { c.halfway = err }
