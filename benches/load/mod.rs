//! What the whole-program benches share: the program under test, and what the kernel knows of it.
//!
//! - [`target`] starts the release binary pinned to a core, on a file system of choice;
//! - [`usage`] reads memory of a process as the kernel keeps it, its peak above all.
#![allow(dead_code)] // each bench compiles this module and uses a part of it

pub mod target;
pub mod usage;
