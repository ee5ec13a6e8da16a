"""Settings: what can be set, where it comes from, and what is wrong with it."""

from mirror.config.access import Access as Access
from mirror.config.access import Oidc as Oidc
from mirror.config.cache import Cache as Cache
from mirror.config.cache import Expire as Expire
from mirror.config.fleet import Fleet as Fleet
from mirror.config.guards import Conditions as Conditions
from mirror.config.guards import Guard as Guard
from mirror.config.guards import Signed as Signed
from mirror.config.hosted import Hosted as Hosted
from mirror.config.hosted import Keep as Keep
from mirror.config.rates import RateHours as RateHours
from mirror.config.rates import rates_at as rates_at
from mirror.config.registries import ALIASES as ALIASES
from mirror.config.registries import DEFAULT_ENDPOINTS as DEFAULT_ENDPOINTS
from mirror.config.registries import DEFAULT_REGISTRY as DEFAULT_REGISTRY
from mirror.config.registries import KNOWN_ENDPOINTS as KNOWN_ENDPOINTS
from mirror.config.registries import Endpoint as Endpoint
from mirror.config.registries import Registry as Registry
from mirror.config.server import Server as Server
from mirror.config.settings import Log as Log
from mirror.config.settings import Settings as Settings
from mirror.config.settings import load as load
from mirror.config.sources import ConfigError as ConfigError
from mirror.config.upstream import Upstream as Upstream
from mirror.config.warm import Warm as Warm
from mirror.config.webhooks import Webhook as Webhook
