//! The memory protocol: shim and daemon.
