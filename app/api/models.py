"""`GET /models`: which pose models there are, and how to read their keypoints."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Depends
from fastapi.concurrency import run_in_threadpool

import models
from app.api import Service, current_service
from app.errors import InvalidParameterError, UnknownModelError
from app.render import side_colour
from app.schemas import ModelCard, ModelsResponse
from models import Card
from models.catalogue import complexity_of
from models.skeletons import Skeleton

router = APIRouter(tags=["models"])


@router.get("/models")
async def list_models(service: Annotated[Service, Depends(current_service)]) -> ModelsResponse:
    """The cards of all pose models, which of them are loaded, and what their joints are."""
    seconds = service.engine.warm_up_seconds
    # A file may be called as one of the catalogue, in whose place it is loaded then.
    known = {name: models.card(name) for name in models.names()} | service.cards
    # Before the service is ready, counting what the networks cost takes a moment.
    cards = await run_in_threadpool(
        lambda: [
            _describe(card, name in service.cards, seconds.get(name))
            for name, card in known.items()
        ]
    )
    default = choose(service, None, None)
    return ModelsResponse.model_validate(
        {"default": default.name, "models": cards, **_joints(default)}
    )


def choose(service: Service, representation: str | None, name: str | None) -> Card:
    """The pose model for a request.

    Raises:
        InvalidParameterError: the model is not of the representation.
        UnknownModelError: there is no such model, or none is loaded.
    """
    loaded = list(service.cards.values())
    if name is None:
        wanted = representation or service.settings.representation
        for card in loaded:
            if card.representation == wanted:
                return card
        raise UnknownModelError(f"No model of {wanted} is loaded; {_loaded(loaded)}.")
    if name in service.cards:
        card = service.cards[name]
        if representation not in (None, card.representation):
            raise InvalidParameterError(
                f"model={name} is of {card.representation}, not of {representation}: give one "
                f"of the two parameters."
            )
        return card
    known = "is not loaded" if name in models.names() else "does not exist"
    raise UnknownModelError(f"The model {name} {known}; {_loaded(loaded)}.")


def _loaded(cards: list[Card]) -> str:
    return "loaded are " + ", ".join(f"{card.name} ({card.representation})" for card in cards)


def _joints(card: Card) -> dict[str, Any]:
    """How to read a pose model's keypoints."""
    skeleton = card.architecture.skeleton
    return {
        "joint_names": skeleton.names,
        "skeleton": skeleton.limbs,
        "skeleton_colours": [_hexadecimal(skeleton, *limb) for limb in skeleton.limbs],
        "joint_colours": [_hexadecimal(skeleton, joint) for joint in range(skeleton.joints)],
        "flip_pairs": skeleton.flip_pairs,
    }


def _hexadecimal(skeleton: Skeleton, *joints: int) -> str:
    return "#" + bytes(side_colour(skeleton, *joints)).hex()


def _describe(card: Card, loaded: bool, seconds: float | None) -> ModelCard:
    cost = complexity_of(card)
    return ModelCard.model_validate(
        {
            **asdict(card),
            **_joints(card),
            "profile": asdict(card.profile),
            "loaded": loaded,
            "milliseconds": None if seconds is None else round(1000 * seconds, 2),
            "representation": card.representation,
            "backbone": card.backbone,
            "input_size": card.input_size,
            "parameters": cost.parameters,
            "gmacs": cost.gmacs,
            "scores": card.scores,
        }
    )
