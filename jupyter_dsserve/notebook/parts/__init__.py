"""The parts of a panel, a file each: `panel` puts them together and feeds them."""
