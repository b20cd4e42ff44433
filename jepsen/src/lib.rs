//! Real processes, injected faults, and checkers of the histories they leave.
