package etcd

// CheapPasswords makes logging in fast: at the cost that etcd takes by default a
// login is a tenth of a second of work, and many times that under the race
// detector on a busy machine.
func (c *ServerConfig) CheapPasswords() { c.bcryptCost = 4 }
