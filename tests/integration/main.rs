//! Integration tests: real server processes, real sockets, real files. One file per behaviour.

mod abuse;
mod administration;
mod authentication;
mod backup;
mod bench;
mod chaos;
mod cluster;
mod commands;
mod cut_off;
mod damage;
mod disk_space;
mod follow;
mod limits;
mod offload;
mod operators;
mod policies;
mod producers;
mod pull;
mod rest;
mod retention;
mod sdk;
mod security;
mod survival;
mod tls;
mod traces;
mod wire;
