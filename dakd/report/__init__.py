"""REPORT: a run folder as one HTML page. The only place with HTML; the numbers are those that the steps wrote."""
