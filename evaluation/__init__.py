"""Methods × pictures → numbers: data sets, runs, metrics, reports."""
