//! Joins session, queues, link and observers; owns the threads.
