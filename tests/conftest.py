"""What all tests share: examples are drawn without a clock, since a busy machine is no reason to fail."""

from hypothesis import HealthCheck, settings

settings.register_profile("baton", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("baton")
