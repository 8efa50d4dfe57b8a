//! A real redis-server for tests.
