"""Pictures where people would rather look than read numbers: `txtrain eval --plots`."""
