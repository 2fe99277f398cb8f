//! What the whole-program benches share: the program under test, and what the kernel knows of it.
//!
//! - [`target`] starts the release binary pinned to a core, on a file system of choice;
//! - [`tls`] makes certificates, and clients that trust them;
//! - [`usage`] reads memory and CPU time of a process as the kernel keeps them.
#![allow(dead_code)] // each bench compiles this module and uses a part of it

pub mod target;
pub mod tls;
pub mod usage;
