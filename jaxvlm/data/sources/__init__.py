"""Where records come from: files and data sets in every format that is read."""
