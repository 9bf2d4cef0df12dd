//! Types that cross the kernel boundary.
#![cfg_attr(not(test), no_std)]
