//! The program as its users see it: against targets that do as they are told, and against real servers.

#[path = "../support/mod.rs"]
mod support;

mod command_line;
mod counts;
mod hostile;
mod schedules;
mod tls;
mod trouble;
mod verifying;
