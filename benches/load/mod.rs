//! What the whole-program benches share: a cheap load, the program under test, and what the kernel knows of it.
//!
//! - [`generator`] sends messages from one thread and counts 250s;
//! - [`target`] starts the release binary pinned to a core, on a file system of choice;
//! - [`usage`] reads CPU time and memory of a process.
#![allow(dead_code)] // each bench compiles this module and uses a part of it

pub mod generator;
pub mod target;
pub mod usage;
pub mod wire;
