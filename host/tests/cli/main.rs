//! Tests of the real binary: what people and scripts see of it.

mod announced;
mod attach;
mod cut;
mod device;
mod doctor;
mod front_end;
mod guest;
mod hardware;
mod hazard;
mod judge;
mod looking;
mod page;
mod parquet;
mod perfetto;
mod proxy;
mod report;
mod sandbox;
mod schemas;
mod serve;
mod usage;
mod util;
mod watch;
mod watch_live;
mod whose;
mod witnesses;
