"""Many runs side by side: the report of a sweep or a study, and studies of one factor at a time. Imports nothing here,
as Hydra loads ``callback.py`` at every start."""
