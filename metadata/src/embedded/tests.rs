//! Tests of what only this implementation has: crashes, damage, and failing disks.
