"""Campaigns: trainings, pseudo-labels and scores as stages, of which none is done twice and none lets a donor judge itself."""

from perfuse.campaigns.built_in import CAMPAIGNS
from perfuse.campaigns.loading import load_campaign
from perfuse.campaigns.planning import Plan, Planned, plan_campaign
from perfuse.campaigns.schema import Campaign, Roles

__all__ = ["CAMPAIGNS", "Campaign", "Plan", "Planned", "Roles", "load_campaign", "plan_campaign"]
