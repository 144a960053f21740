"""Tables and all SQL, one file of plain functions per noun."""
