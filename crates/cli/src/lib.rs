//! bulkhead: the operator's command line.
