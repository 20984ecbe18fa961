//! Integration tests: real server processes, real sockets, real files. One file per behaviour.

mod damage;
mod disk_space;
mod survival;
mod wire;
