//! Redis, from outside: one binary, a module for each subject.

mod cluster;
mod cluster_commands;
mod commands;
mod config;
mod connect;
mod load;
mod outage;
mod scripts;
mod subscription;
mod support;
