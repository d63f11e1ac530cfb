//! Status files and what people see of them.
