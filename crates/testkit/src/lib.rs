//! Local fleets, a WAN relay and fixtures for tests and benchmarks.
