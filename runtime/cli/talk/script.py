"""What the demo says: a conversation that already happened, and the turns that are played live after it.

Knows what a right answer of the shipped model is; of any other model it expects nothing.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Line:
    """What the user says, and the shipped model's one right answer."""

    user: str
    answer: str


# Long enough that a prefill worker computes it: facts, and between them what must not disturb.
EARLIER = (
    Line("Hello.", "Hello, I am Baton's demo model. Tell me something and I will remember it."),
    Line("My dog is called Rex.", "Noted, your dog is called Rex."),
    Line("It is raining today.", "I see, weather can be like that."),
    Line("The code is 4417.", "Noted, the code is 4417."),
    Line("My aunt walked to the old bridge this morning.", "I see. Please tell me more."),
    Line("My sister lives in Lisbon.", "Noted, your sister lives in Lisbon."),
    Line("The train was late again.", "I am sorry to hear that."),
    Line("We waited at the station in the rain.", "I see. Please tell me more."),
    Line("My favourite colour is turquoise.", "Noted, your favourite colour is turquoise."),
    Line("I had soup for lunch.", "That sounds good."),
    Line("I have a parrot. My parrot is called Coco.", "A parrot, how nice."),
    Line("The postman talked about a red house yesterday.", "I see. Please tell me more."),
    Line("The room number is 208.", "Noted, the room number is 208."),
    Line("I finished my book.", "That sounds good."),
    Line("The children ran to the river on Friday.", "I see. Please tell me more."),
    Line("My teacher is called Ingrid.", "Noted, your teacher is called Ingrid."),
)

LIVE = (
    Line("What is my dog called?", "Your dog is called Rex."),
    Line("Do you remember the code?", "Yes, you told me that the code is 4417."),
    Line("Actually, the code is 9052.", "Noted, the code is 9052."),
    Line("Where does my sister live?", "Your sister lives in Lisbon."),
    Line("What is the code?", "The code is 9052."),
    Line("Thank you.", "You are welcome."),
)
