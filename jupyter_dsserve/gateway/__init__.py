"""The Tornado application. Knows HTTP; decides nothing: authenticate, validate, one call on the fleet, one answer."""
